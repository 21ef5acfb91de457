"""`python -m services.verifier.sandbox.probe` prints which layers of the sandbox work on this machine.

Exit code 0 if untrusted code may run, 1 if a required layer is missing, with the remedy on standard output.
"""

from __future__ import annotations

import sys

from services.verifier.sandbox.sandbox import probe


def main() -> int:
    """Print the active layers, or the missing ones and their remedies."""
    layers = probe()
    if layers.missing:
        print("; ".join(f"{layer} is missing: {remedy}" for layer, remedy in layers.missing.items()))
        return 1
    print(", ".join(layers.active) + (f". {layers.advice}" if layers.advice else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
