"""`python -m trainer`: what a launcher starts as each rank; the command `train` is the same."""

from trainer.cli import main

if __name__ == "__main__":
    main()
