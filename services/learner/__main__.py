"""Start the learner: `python -m services.learner`."""

from services.learner.service import check, loops
from services.runtime.process import run_service

if __name__ == "__main__":
    run_service("learner", loops, check)
