"""``python -m sae_moo``: the command line, also from a checkout that was never installed."""

from sae_moo.cli.main import main

if __name__ == "__main__":
    main()
