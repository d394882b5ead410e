"""The HTTP gateway of policyd, a policy enforcement point (PEP): it describes each request, asks
policyd for a decision, and then forwards the request to the upstream API, or answers with the
denial. With --decide local it decides in its own process, by policyd's settings and its engine.

In the order in which a request passes through them:

    app             the ASGI app: the whole way on one page; start here
    headers         sorts a request's headers: forwarded, for policyd, read by the gateway
    end_users       headers that may name the end user, and the clients from which they count
    intake          takes a body in, as far as a policy may need it, within bounds
    describe        the request descriptor (EvaluateRequest) of a request
    policyd_client  asks policyd, or decides by policyd's settings
    exchange        forwards an allowed request, relays the answer, notices a client that leaves
    upstream        the upstream API: sends requests, streams bodies, maps failures to replies
    connector       the pool of connections to it; connection: one of them, with its time-outs
    resending       when a request may be sent again; whole_body: a body that goes in pieces
    breaker         when not to connect; keep_alive: when not to use an idle connection
    upstream_path   the path of the upstream's URL; timeouts: how long the upstream may take
    outcome         the outcome recorder: what became of the request, reported to policyd
    answer_reader   reads an answer's metadata while it passes; usage: its ID, model and tokens
    replies         the gateway's own answers, in the shape of OpenAI's errors
    undecided       counts requests that got no decision, and logs them at most once a second

Around it:

    cli             the command `policyd-gateway`; serve, config, doctor, health: its subcommands
    settings        its settings; setting_rules: which fit together; upstream_url: --upstream
    supervisor      holds the socket and the workers; worker: one of them; server: app and listener
    diagnosis       why the gateway does not reach policyd; first_contact: logs it at the start
    config_checks   what `config check` and `doctor` look at
    telemetry       what operators watch a gateway by: request_metrics, request_access and
                    request_traces of a worker, supervisor_metrics of all
"""
