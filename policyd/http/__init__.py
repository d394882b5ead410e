"""policyd over HTTP: the check that proxies ask, the descriptor in JSON, and AuthZEN.

app      the ASGI app behind --http: which path is which, and who may ask
request  a request as the check reads it
check    /v1/check: a proxy's request -> its descriptor, and the answer -> a response
connect  PolicyService as JSON or protobuf over HTTP/1.1, by the Connect protocol
authzen  OpenID AuthZEN's evaluations
"""
