"""The gRPC services: thin servicers. Each reads a message, makes one call of the code below, and
answers with a message.

In the order in which a call passes through them:

    grpc_server       a port with services, health and reflection, and its bounds
    waiting_calls     bounds the calls that wait for their message, or stream
    authentication    bearer tokens
    errors            policyd's errors as gRPC statuses: one table
    policy            PolicyService, by policyd/decider
    ext_authz         Envoy's external authorization; ext_authz_request: its message
    envoy_access_log  Envoy's access log: its entries -> outcomes
    admin             AdminService: API keys, and the decision log
    key_messages      keys, settings and defaults -> messages, and back
    log_messages      entries of the decision log -> messages
    local             LocalDecisionService, for gateways that decide by themselves: watch_keys
                      (followers, key_feed) and append_decisions (claimed_entries)
    lasting_streams   bounds the streams of LocalDecisionService;  local_messages: its messages
"""
