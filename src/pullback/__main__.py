"""`python -m pullback`: the command line, also for `torchrun -m pullback`."""

from pullback.cli import main

if __name__ == "__main__":
    main()
