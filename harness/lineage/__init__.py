"""Where every result came from: nodes as plain records, local directories, and MLflow runs filled from them."""
