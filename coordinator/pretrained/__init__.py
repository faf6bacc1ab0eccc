"""Seeds that were trained elsewhere: read, checked, brought to the run's widths, made its own."""
