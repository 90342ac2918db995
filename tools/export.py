"""Export a run as a directory, a repository on the Hugging Face Hub, ONNX or pruned PyTorch (`tickets export`)."""

from harness.cli.export import main

if __name__ == "__main__":
    main()
