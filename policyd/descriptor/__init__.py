"""How a request is read: an HTTP request -> its descriptor -> the input of a decision."""
