"""The verbs that speak to a worker that runs, or look into its folder."""
