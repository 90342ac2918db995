"""Import an exported run and its lineage from the Hugging Face Hub (`tickets pull`)."""

from harness.cli.pull import main

if __name__ == "__main__":
    main()
