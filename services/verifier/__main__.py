"""Start a verifier: `python -m services.verifier`."""

from services.runtime.process import run_service
from services.verifier.service import loops

if __name__ == "__main__":
    run_service("verifier", loops)
