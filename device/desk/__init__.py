"""The desk: what people ask of a running agent, from a terminal or a browser, and its answers."""
