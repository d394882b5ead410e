"""How a request is read: headers, body and path -> what a gateway asks, and what is decided on."""
