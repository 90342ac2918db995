"""What a launch does: searches, final trainings, comparisons."""
