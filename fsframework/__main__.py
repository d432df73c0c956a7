"""`python -m fsframework` is `fsf`."""

from fsframework.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
