"""`python -m pullback`: the command line, also for `torchrun -m pullback`."""

from pullback.cli import program

if __name__ == "__main__":
    program()
