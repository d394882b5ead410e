// Asks policyd about each request, and lets nginx forward it or answers with the denial.

const OWN = 'x-usagepanda-';
// nginx removes headers by their full names only: these are the ones that nginx.conf removes.
const REMOVED = ['x-usagepanda-api-key', 'x-usagepanda-enforce-user-ids', 'x-usagepanda-max-tokens',
    'x-usagepanda-max-prompt-chars', 'x-usagepanda-trace-id'];

async function check(r) {
    if (r.method === 'OPTIONS') {
        answer(r, 200, [['Access-Control-Allow-Headers', '*, Authorization']], '{}');
        return;
    }
    if (/websocket/i.test(r.headersIn['Upgrade'] || '')) {
        // After a 426, clients that also speak HTTP try it at once.
        fail(r, 426, 'invalid_request', 'This gateway does not pass WebSocket connections on, ' +
            'because no policy can see into them. Send the request over HTTP, with stream: true ' +
            'for a stream');
        return;
    }
    const stray = r.rawHeadersIn.map(pair => pair[0].toLowerCase())
        .find(name => name.startsWith(OWN) && !REMOVED.includes(name));
    if (stray !== undefined) {
        fail(r, 400, 'invalid_request', 'This gateway cannot keep the header ' + stray +
            ' from the upstream. Leave it out, or ask the operator to remove it in nginx.conf');
        return;
    }
    // The subrequest sends the body, from memory or from nginx's file.
    const reply = await r.subrequest('/policyd-check', {method: 'POST'});
    const headers = reply.headersOut;
    const decided = headers['X-Policyd-Decision-Id'] !== undefined;
    if (reply.status === 200 && decided) {
        forward(r, headers['X-Policyd-Upstream-Path']);
    } else if (reply.status >= 400 && reply.status !== 401 &&
            (headers['Content-Type'] || '').startsWith('application/json')) {
        // OpenAI's clients show it as the error's request_id.
        const id = headers['x-request-id'];
        answer(r, reply.status, id ? [['x-request-id', id]] : [], reply.responseBuffer);
    } else {
        r.error('policyd gave no decision: status ' + reply.status);
        fail(r, 503, 'server_error', 'The policy service gave no decision, so the request was ' +
            'not sent upstream. Try again; if it lasts, ask the gateway\'s operator');
    }
}

// Where the policy applies, the path goes upstream in its one canonical form.
function forward(r, path) {
    r.variables.policyd_target = path === undefined ? r.variables.request_uri
        : path + (r.variables.args ? '?' + r.variables.args : '');
    r.internalRedirect('@upstream');
}

function fail(r, status, type, message) {
    const error = {message: 'Usage Panda: ' + message, type: type, param: null, code: null};
    const more = {503: [['Retry-After', '1']], 426: [['Upgrade', 'HTTP/1.1'], ['Connection', 'Upgrade']]};
    answer(r, status, more[status] || [], JSON.stringify({error: error}));
}

function answer(r, status, headers, body) {
    const all = [
        ['Access-Control-Allow-Headers', '*'],
        ['Access-Control-Allow-Origin', '*'],
        ['Access-Control-Allow-Methods', 'OPTIONS,POST,GET'],
        ['Content-Type', 'application/json'],
    ].concat(headers);
    all.forEach(pair => { r.headersOut[pair[0]] = pair[1]; });
    r.return(status, body);
}

export default {check};
