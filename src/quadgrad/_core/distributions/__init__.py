"""What expectations need to know of torch's distributions: parameters, supports, states, transports."""
