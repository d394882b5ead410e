package example;

import com.google.protobuf.UnsafeByteOperations;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.StatusRuntimeException;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.SequenceInputStream;
import java.net.URI;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.security.SecureRandom;
import java.util.HexFormat;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.TimeUnit;
import java.util.regex.Pattern;
import org.eclipse.jetty.http.DateGenerator;
import org.eclipse.jetty.http.HttpField;
import org.eclipse.jetty.http.HttpHeader;
import org.eclipse.jetty.http.HttpURI;
import org.eclipse.jetty.http.UriCompliance;
import org.eclipse.jetty.io.Content;
import org.eclipse.jetty.proxy.ProxyHandler;
import org.eclipse.jetty.server.HttpConfiguration;
import org.eclipse.jetty.server.HttpConnectionFactory;
import org.eclipse.jetty.server.Request;
import org.eclipse.jetty.server.Response;
import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.server.ServerConnector;
import org.eclipse.jetty.util.Callback;
import policyd.v1.Policy.Decision;
import policyd.v1.Policy.Denial;
import policyd.v1.Policy.EvaluateRequest;
import policyd.v1.Policy.EvaluateResponse;
import policyd.v1.Policy.Header;
import policyd.v1.Policy.RawBody;
import policyd.v1.Policy.UserState;
import policyd.v1.PolicyServiceGrpc;
import policyd.v1.PolicyServiceGrpc.PolicyServiceBlockingStub;

/**
 * A small gateway for OpenAI-compatible APIs that asks policyd about every request before it
 * forwards it.
 */
public final class Gateway extends ProxyHandler {
  /** policyd reads 4 MiB of a body, and accepts no larger message; headers need room in it, too. */
  private static final int MAX_BODY = 4 * 1024 * 1024 - 64 * 1024;

  /**
   * A policyd that is being replaced closes its connections: the call is tried again within the
   * deadline, at each of several addresses in turn.
   */
  private static final Map<String, ?> CALLS =
      Map.of(
          "loadBalancingConfig",
          List.of(Map.of("round_robin", Map.of())),
          "methodConfig",
          List.of(
              Map.of(
                  "name",
                  List.of(Map.of("service", PolicyServiceGrpc.SERVICE_NAME)),
                  "retryPolicy",
                  Map.of(
                      "maxAttempts", 5.0,
                      "initialBackoff", "0.1s",
                      "maxBackoff", "0.5s",
                      "backoffMultiplier", 2.0,
                      "retryableStatusCodes", List.of("UNAVAILABLE")))));

  /** Besides its own headers, policyd reads those that describe the body, name the end user or turn another method into a POST. */
  private static final Pattern READ =
      Pattern.compile(
          "content-(type|encoding)|openai-safety-identifier|"
              + "x[-_]http[-_]method([-_]override)?|x[-_]method[-_]override",
          Pattern.CASE_INSENSITIVE);

  /** A client's Connection header removes none of these: policyd, or the upstream, reads the request by them. */
  private static final Set<String> END_TO_END =
      Set.of(
          "authorization",
          "content-encoding",
          "content-length",
          "content-type",
          "openai-safety-identifier");

  private static final SecureRandom RANDOM = new SecureRandom();
  private static final String CANONICAL_PATH = "policyd.upstream_path";

  private final PolicyServiceBlockingStub policyd;
  private final int policyTimeout;
  private final URI upstream;

  private Gateway(PolicyServiceBlockingStub policyd, int policyTimeout, URI upstream) {
    this.policyd = policyd;
    this.policyTimeout = policyTimeout;
    this.upstream = upstream;
  }

  /**
   * Serves until it is told to stop. Usage: [--listen HOST:PORT] [--policyd HOST:PORT]
   * [--policy-timeout SECONDS] [--upstream URL]
   */
  public static void main(String[] arguments) throws Exception {
    URI listen = URI.create("http://" + option(arguments, "--listen", "127.0.0.1:8080"));
    String policyd = option(arguments, "--policyd", "127.0.0.1:50051");
    int policyTimeout = Integer.parseInt(option(arguments, "--policy-timeout", "1"));
    URI upstream = URI.create(option(arguments, "--upstream", "https://api.openai.com"));
    ManagedChannel channel =
        ManagedChannelBuilder.forTarget(policyd)
            .usePlaintext()
            .defaultServiceConfig(CALLS)
            .enableRetry()
            // The gateway notices after 12 s, not after minutes, that policyd has vanished, and
            // reconnects.
            .keepAliveTime(10, TimeUnit.SECONDS)
            .keepAliveTimeout(2, TimeUnit.SECONDS)
            .keepAliveWithoutCalls(true)
            .build();
    HttpConfiguration http = new HttpConfiguration();
    http.setUriCompliance(UriCompliance.UNSAFE); // policyd judges every spelling of a path.
    http.setSendServerVersion(false);
    http.setSendDateHeader(false); // It would stand before the headers of a denial.
    Server server = new Server();
    ServerConnector connector = new ServerConnector(server, new HttpConnectionFactory(http));
    connector.setHost(listen.getHost());
    connector.setPort(listen.getPort());
    server.addConnector(connector);
    PolicyServiceBlockingStub stub = PolicyServiceGrpc.newBlockingStub(channel);
    server.setHandler(new Gateway(stub, policyTimeout, upstream));
    server.setStopAtShutdown(true);
    server.start();
    System.out.printf(
        "gateway is ready: http://%s:%d%n", listen.getHost(), connector.getLocalPort());
    server.join();
    channel.shutdownNow();
  }

  private static String option(String[] arguments, String name, String otherwise) {
    int place = List.of(arguments).indexOf(name);
    return place < 0 ? otherwise : arguments[place + 1];
  }

  @Override
  public boolean handle(Request request, Response response, Callback callback) {
    if (request.getMethod().equals("OPTIONS")) {
      answer(response, callback, 200, "*, Authorization", "{}");
    } else if (asksForWebSocket(request)) {
      // After a 426, clients that also speak HTTP try it at once.
      answerError(response, callback, 426, "invalid_request", "No policy can see into WebSockets. Ask over HTTP");
    } else {
      judge(request, response, callback);
    }
    return true;
  }

  private static boolean asksForWebSocket(Request request) {
    return request.getHeaders().getValuesList(HttpHeader.UPGRADE).stream()
        .anyMatch(value -> value.toLowerCase(Locale.ROOT).contains("websocket"));
  }

  private void judge(Request request, Response response, Callback callback) {
    try {
      InputStream body = Content.Source.asInputStream(request);
      byte[] begun = body.readNBytes(MAX_BODY + 1);
      EvaluateResponse decided =
          policyd
              .withDeadlineAfter(policyTimeout, TimeUnit.SECONDS)
              .evaluate(describe(request, begun));
      if (decided.getDecision() == Decision.DECISION_ALLOW) {
        request.setAttribute(CANONICAL_PATH, decided.getUpstreamPath());
        InputStream whole = new SequenceInputStream(new ByteArrayInputStream(begun), body);
        super.handle(new Replayed(request, Content.Source.from(whole)), response, callback);
      } else {
        deny(response, callback, decided);
      }
    } catch (StatusRuntimeException noDecision) {
      // Fail closed: without a decision nothing goes upstream.
      System.err.println("no decision: " + noDecision.getStatus());
      response.getHeaders().put(HttpHeader.RETRY_AFTER, "1");
      answerError(response, callback, 503, "server_error", "The policy service gave no decision. Try again");
    } catch (IOException badBody) {
      answerError(response, callback, 400, "invalid_request", "The body is not as its headers say");
    }
  }

  /** The descriptor of a request, with its body, which policyd reads, and the path that goes upstream. */
  private EvaluateRequest describe(Request request, byte[] body) {
    EvaluateRequest.Builder asked =
        EvaluateRequest.newBuilder()
            .setMethod(request.getMethod())
            .setPath(prefix() + request.getHttpURI().getPathQuery())
            .setIdempotencyKey(newKey())
            .setSourceIp(Request.getRemoteAddr(request));
    for (HttpField field : request.getHeaders()) {
      if (isOurs(field) || READ.matcher(field.getName()).matches()) {
        String value = field.getValue() == null ? "" : field.getValue();
        asked.addHeaders(Header.newBuilder().setName(field.getName()).setValue(value));
      }
    }
    if (body.length > MAX_BODY) {
      return asked.setUserState(UserState.USER_STATE_TOO_LARGE).build();
    }
    return asked
        .setRawBody(RawBody.newBuilder().setContent(UnsafeByteOperations.unsafeWrap(body)))
        .build();
  }

  /** A key that each attempt at a call repeats, so that policyd decides and logs it once. */
  private static String newKey() {
    byte[] random = new byte[10];
    RANDOM.nextBytes(random);
    return "%012x%s".formatted(System.currentTimeMillis(), HexFormat.of().formatHex(random));
  }

  private String prefix() {
    return upstream.getRawPath().replaceFirst("/$", "");
  }

  /** Whether a header is policyd's, or a server may take it for one of them. */
  private static boolean isOurs(HttpField field) {
    return dashed(field).startsWith("x-usagepanda-");
  }

  /** A header's name as servers read it that take an underscore for a dash. */
  private static String dashed(HttpField field) {
    return field.getName().toLowerCase(Locale.ROOT).replace('_', '-');
  }

  // --- the way upstream --------------------------------------------------------------------------

  @Override
  protected HttpURI rewriteHttpURI(Request request) {
    return HttpURI.from(upstream);
  }

  /** The target with the path by which policyd decided, and otherwise unchanged. */
  @Override
  protected org.eclipse.jetty.client.Request newProxyToServerRequest(Request request, HttpURI uri) {
    String canonical = (String) request.getAttribute(CANONICAL_PATH);
    String path = canonical.isEmpty() ? prefix() + request.getHttpURI().getPath() : canonical;
    String query = request.getHttpURI().getQuery();
    return getHttpClient()
        .newRequest(upstream)
        .path(path + (query == null ? "" : "?" + query))
        .method(request.getMethod());
  }

  @Override
  protected void copyRequestHeaders(Request request, org.eclipse.jetty.client.Request outgoing) {
    super.copyRequestHeaders(request, outgoing);
    for (HttpField field : request.getHeaders()) {
      if (isOurs(field)) {
        outgoing.headers(headers -> headers.remove(field.getName()));
      } else if (END_TO_END.contains(field.getLowerCaseName())
          && !outgoing.getHeaders().contains(field)) {
        outgoing.headers(headers -> headers.add(field));
      }
    }
  }

  @Override
  protected void addProxyHeaders(Request request, org.eclipse.jetty.client.Request outgoing) {
    // Nothing: the request goes upstream unchanged.
  }

  @Override
  protected void onServerToProxyResponseFailure(
      Request request,
      org.eclipse.jetty.client.Request outgoing,
      org.eclipse.jetty.client.Response incoming,
      Response response,
      Callback callback,
      Throwable failure) {
    System.err.println("no answer from upstream: " + failure);
    if (response.isCommitted()) {
      callback.failed(failure);
    } else {
      response.reset();
      answerError(response, callback, 502, "server_error", "The upstream API cannot be reached. Try again");
    }
  }

  // --- answers -----------------------------------------------------------------------------------

  /** Answers with policyd's denial, byte for byte, and the decision's ID in a header after it. */
  private static void deny(Response response, Callback callback, EvaluateResponse decided) {
    Denial denial = decided.getDenial();
    for (Header header : denial.getHeadersList()) {
      response.getHeaders().add(header.getName(), header.getValue());
    }
    HttpField id = new HttpField("x-request-id", decided.getDecisionId());
    send(response, callback, denial.getHttpStatus(), denial.getBody().asReadOnlyByteBuffer(), id);
  }

  /** Answers with an error of this gateway, in the shape of OpenAI's errors. */
  private static void answerError(
      Response response, Callback callback, int status, String type, String message) {
    String body =
        "{\"error\":{\"message\":\"Usage Panda: %s\",\"type\":\"%s\",\"param\":null,\"code\":null}}";
    answer(response, callback, status, "*", body.formatted(message, type));
  }

  private static void answer(
      Response response, Callback callback, int status, String allowedHeaders, String body) {
    response.getHeaders().add("Access-Control-Allow-Headers", allowedHeaders);
    response.getHeaders().add("Access-Control-Allow-Origin", "*");
    response.getHeaders().add("Access-Control-Allow-Methods", "OPTIONS,POST,GET");
    response.getHeaders().add("Content-Type", "application/json");
    HttpField[] more = {
      new HttpField(HttpHeader.UPGRADE, "HTTP/1.1"), new HttpField(HttpHeader.CONNECTION, "Upgrade")
    };
    HttpField[] none = {};
    send(response, callback, status, StandardCharsets.UTF_8.encode(body), status == 426 ? more : none);
  }

  private static void send(
      Response response, Callback callback, int status, ByteBuffer body, HttpField... more) {
    response.setStatus(status);
    response.getHeaders().add(HttpHeader.DATE, DateGenerator.formatDate(System.currentTimeMillis()));
    for (HttpField field : more) {
      response.getHeaders().add(field);
    }
    response.write(true, body, callback);
  }

  /** A request whose body comes from another source, because its beginning was read already. */
  private static final class Replayed extends Request.Wrapper {
    private final Content.Source body;

    Replayed(Request request, Content.Source body) {
      super(request);
      this.body = body;
    }

    @Override
    public Content.Chunk read() {
      return body.read();
    }

    @Override
    public void demand(Runnable callback) {
      body.demand(callback);
    }

    @Override
    public void fail(Throwable failure) {
      body.fail(failure);
    }
  }
}
