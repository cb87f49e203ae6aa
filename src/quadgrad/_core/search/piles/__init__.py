"""Places where cells pile up, which nobody marked: jumps, kinks and singularities, closed in on."""
