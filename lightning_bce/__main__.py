"""python -m lightning_bce is the lightning-bce command."""

from lightning_bce.cli import main

if __name__ == "__main__":
    main()
