"""Start a rollout server: `python -m services.rollout`."""

from services.rollout.environment import check_machine, prepare

if __name__ == "__main__":
    prepare()  # before anything can import torch or vLLM

    from services.rollout.service import loops
    from services.runtime.process import run_service

    run_service("rollout", loops, check_machine)
