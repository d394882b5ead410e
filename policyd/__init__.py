"""policyd decides whether a request to an LLM API may go upstream.

In the order in which a request passes through them:

    descriptor    how a request is read: HTTP request -> descriptor -> input of a decision
    client        how a gateway asks: PolicyClient, SyncPolicyClient
    services      gRPC: Evaluate, administration, Envoy's ext_authz;  http: the check and AuthZEN
    decider       descriptor -> decision, logged by the time that it is answered
    keys          API keys, and all of their settings in memory
    engine        what is decided, and the bytes of a denial;  policies: the rules, a file for each
    decision_log  records, the spool, export;  store: the database, and the only SQL

Around it:

    console       the web console
    cli           the command;  server: what `policyd serve` starts;  demo: `policyd demo`
    settings      the settings of `policyd serve`;  setting_rules: which of them fit together
    command       what the processes of policyd and its gateway are made of: settings, addresses,
                  workers, threads;  asgi: what all HTTP servers share
    telemetry     metrics, access lines, traces and logs
    simulation    what other settings would have done, by the log;  trial: one request, decided now
    errors        the tree of exceptions;  build_info: version, commit;  extras: what is installed
    v1            the stubs that `make protos` generates

The HTTP gateway is a package of its own, `gateway`. docs/architecture.md says more.
"""
