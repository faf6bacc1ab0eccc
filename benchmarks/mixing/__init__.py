"""What a mixture costs beside the ensemble of its experts, and what it is worth over replicates."""
