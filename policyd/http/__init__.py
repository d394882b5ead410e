"""HTTP as policyd and its gateway serve it: uvicorn, and replies that are exact to the byte."""
