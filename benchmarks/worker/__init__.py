"""What a volunteer's worker costs its owner, and the run."""
