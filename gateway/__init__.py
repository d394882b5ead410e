"""The HTTP gateway of policyd, a policy enforcement point (PEP): it describes each request, asks
policyd for a decision, and then forwards the request to the upstream API, or answers with the
denial. With --decide local it decides in its own process, by policyd's settings and its engine.

In the order in which a request passes through them:

    app             the ASGI app: the whole way on one page; start here
    headers         sorts a request's headers: forwarded, for policyd, read by the gateway
    intake          takes a body in, as far as a policy may need it, within bounds
    describe        the request descriptor (EvaluateRequest) of a request
    exchange        forwards an allowed request, relays the answer, notices a client that leaves
    upstream        the upstream API: sends requests, streams bodies, maps failures to replies
    connector       the pool of connections to it; connection: one of them, with its time-outs
    delivery        when a request may be sent again
    breaker, idle   when not to connect, and when not to use an idle connection
    outcome         the outcome recorder: what became of the request, reported to policyd
    answer_reader   reads an answer's metadata while it passes; usage: its ID, model and tokens
    replies         the gateway's own answers, in the shape of OpenAI's errors

Around it:

    cli, serve      the command `policyd-gateway`; settings: its settings
    supervisor      holds the socket and the workers; worker: one of them; server: app and listener
    policyd_client  the client that asks policyd, or decides by policyd's settings
    patience, prefix  the upstream's time-outs, and the path of its URL
    checks, reach   what `config check` and `doctor` look at;  setting_rules: what fits together
    watching        metrics, access lines and spans: request_metrics, request_access, request_traces
"""
