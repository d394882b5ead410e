"""policyd decides whether a request to an LLM API may go upstream.

In the order in which a request passes through them:

    descriptor    how a request is read: HTTP request -> descriptor -> input of a decision
    client        how a gateway asks: PolicyClient, SyncPolicyClient
    services      gRPC: Evaluate, administration, Envoy's ext_authz;  http: the check and AuthZEN
    keys          API keys, and all of their settings in memory
    engine        what is decided, and the bytes of a denial
    decision_log  records, the spool, export;  store: the database, and the only SQL
    console       the web console
    settings      the settings of `policyd serve`;  setting_rules: which of them fit together

    cli           the command;  server: what `policyd serve` starts;  demo: `policyd demo`
    command       what all processes share;  asgi: what all HTTP servers share

The HTTP gateway is a package of its own, `gateway`. docs/architecture.md says more.
"""
