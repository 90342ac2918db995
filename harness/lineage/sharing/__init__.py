"""Share one run outside of the project: as a directory, a repository on the Hugging Face Hub, ONNX, or pruned PyTorch.

Every form has the run's key, so that its lineage can be found again.
"""
