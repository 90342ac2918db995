"""The processes of one launch. This package must not import torch, since `launcher_watch` has to run before it."""
