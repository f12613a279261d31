"""Two processes that train one model together over gloo, traced and untraced."""
