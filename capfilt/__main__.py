"""`python -m capfilt`: the same as the `capfilt` command."""

from capfilt.cli import main

if __name__ == "__main__":
    main()
