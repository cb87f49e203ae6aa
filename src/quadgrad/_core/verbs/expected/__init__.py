"""The methods of :func:`quadgrad.expectation`: what each makes of the question, and of the engine's answer."""
