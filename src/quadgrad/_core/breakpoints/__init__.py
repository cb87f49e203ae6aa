"""Places where an integrand jumps: found, differentiated, or warned about."""
