"""Prove this build by an independent implementation in float64 (`tickets selfcheck`)."""

from recipes.selfcheck import main

if __name__ == "__main__":
    main()
