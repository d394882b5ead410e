"""The gRPC services: thin servicers, each a message, one call of the code below, and a message.

In the order of the way of a request:

    grpc_server       a port with services, health and reflection, and its bounds
    waiting_calls     bounds the calls that wait for their message, or stream
    authentication    bearer tokens
    errors            policyd's errors as gRPC statuses: one table
    policy            PolicyService, by policyd/decider
    ext_authz         Envoy's external authorization; ext_authz_request: its message
    envoy_access_log  Envoy's access log: its entries -> outcomes
    admin             AdminService: API keys, and the decision log
    log_messages      entries of the decision log -> messages
"""
