"""Start the API: `python -m services.api`."""

from services.api.service import Api
from services.runtime.process import run_service


def main() -> None:
    api = Api()
    run_service("api", api.loops, api.check)


if __name__ == "__main__":
    main()
