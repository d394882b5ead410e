-- Asks policyd about each request. haproxy.cfg then forwards it or answers with the denial.
--
--   http-request lua.policyd URL BYTES
--
-- URL is that of policyd's check, BYTES the size of body that HAProxy can always hold. The token of
-- --caller-token-file comes from the environment, POLICYD_TOKEN. The result is in txn.policyd.status,
-- and in txn.policyd.body and txn.policyd.id (a denial), or txn.policyd.path (allowed).

-- Headers that policyd does not need, or that this file sets.
local kept_back = {
    ["authorization"] = true, ["connection"] = true, ["content-length"] = true, ["expect"] = true,
    ["host"] = true, ["keep-alive"] = true, ["proxy-connection"] = true, ["te"] = true,
    ["trailer"] = true, ["transfer-encoding"] = true,
    ["x-forwarded-for"] = true, ["x-forwarded-method"] = true, ["x-forwarded-uri"] = true,
    ["x-original-method"] = true, ["x-original-uri"] = true, ["x-original-url"] = true,
    ["x-policyd-body"] = true, ["x-policyd-token"] = true,
}

local function headers_of(txn)
    local headers = {}
    for name, values in pairs(txn.http:req_get_headers()) do
        if not kept_back[name] then
            headers[name] = {}
            for number = 0, #values do
                table.insert(headers[name], values[number])
            end
        end
    end
    headers["x-forwarded-method"] = {txn.f:method()}
    headers["x-forwarded-uri"] = {txn.f:pathq()}
    headers["x-forwarded-for"] = {txn.f:src()}
    headers["x-policyd-token"] = {os.getenv("POLICYD_TOKEN")}
    return headers
end

local function first(headers, name)
    return headers and headers[name] and headers[name][0]
end

core.register_action("policyd", {"http-req"}, function(txn, url, largest)
    txn:set_var("txn.policyd.status", 503)
    local headers = headers_of(txn)
    local body = txn.f:req_body() or ""
    if #body < (txn.f:req_body_size() or 0) or #body > tonumber(largest) then
        headers["x-policyd-body"] = {"partial"}
        body = ""
    end
    -- HAProxy 2.6 makes four attempts, each with this timeout in milliseconds.
    local reply = core.httpclient():post{url = url, headers = headers, body = body, timeout = 1500}
    if reply.status == 200 and first(reply.headers, "x-policyd-decision-id") then
        txn:set_var("txn.policyd.status", 200)
        local path = first(reply.headers, "x-policyd-upstream-path")
        if path then
            txn:set_var("txn.policyd.path", path)
        end
    elseif reply.status >= 400 and reply.status ~= 401
            and first(reply.headers, "content-type") == "application/json" then
        txn:set_var("txn.policyd.status", reply.status)
        txn:set_var("txn.policyd.body", reply.body)
        -- OpenAI's clients show it as the error's request_id.
        txn:set_var("txn.policyd.id", first(reply.headers, "x-request-id") or "")
    else
        core.log(core.err, "policyd gave no decision: status " .. tostring(reply.status))
    end
end, 2)
