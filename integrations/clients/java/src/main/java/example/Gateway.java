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
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.TimeUnit;
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
  /** What policyd reads of a body is 4 MiB, and a message to it is no larger; headers need room, too. */
  private static final int MAX_BODY = 4 * 1024 * 1024 - 64 * 1024;

  /** A policyd that is being replaced closes its connections: one more try finds the next. */
  private static final Map<String, ?> RETRY =
      Map.of(
          "methodConfig",
          List.of(
              Map.of(
                  "name",
                  List.of(Map.of("service", PolicyServiceGrpc.SERVICE_NAME)),
                  "retryPolicy",
                  Map.of(
                      "maxAttempts", 2.0,
                      "initialBackoff", "0.05s",
                      "maxBackoff", "0.05s",
                      "backoffMultiplier", 1.0,
                      "retryableStatusCodes", List.of("UNAVAILABLE")))));

  private static final String JUDGED_PATH = "policyd.upstream_path";

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
            .defaultServiceConfig(RETRY)
            .enableRetry()
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
    } else if (request.getHeaders().contains(HttpHeader.UPGRADE)) {
      refuse(response, callback, 501, "invalid_request", "No policy can see into other protocols. Ask over HTTP");
    } else {
      judge(request, response, callback);
    }
    return true;
  }

  private void judge(Request request, Response response, Callback callback) {
    try {
      InputStream body = Content.Source.asInputStream(request);
      byte[] begun = body.readNBytes(MAX_BODY + 1);
      EvaluateResponse decided =
          policyd
              .withDeadlineAfter(policyTimeout, TimeUnit.SECONDS)
              .evaluate(question(request, begun));
      if (decided.getDecision() == Decision.DECISION_ALLOW) {
        request.setAttribute(JUDGED_PATH, decided.getUpstreamPath());
        InputStream whole = new SequenceInputStream(new ByteArrayInputStream(begun), body);
        super.handle(new Replayed(request, Content.Source.from(whole)), response, callback);
      } else {
        deny(response, callback, decided.getDenial());
      }
    } catch (StatusRuntimeException noDecision) {
      // Fail closed: without a decision nothing goes upstream.
      System.err.println("no decision: " + noDecision.getStatus());
      response.getHeaders().put(HttpHeader.RETRY_AFTER, "1");
      refuse(response, callback, 503, "server_error", "The policy service gave no decision. Try again");
    } catch (IOException badBody) {
      refuse(response, callback, 400, "invalid_request", "The body is not as its headers say");
    }
  }

  /** Describes a request to policyd, which reads the body itself. */
  private static EvaluateRequest question(Request request, byte[] body) {
    EvaluateRequest.Builder asked =
        EvaluateRequest.newBuilder()
            .setMethod(request.getMethod())
            .setPath(request.getHttpURI().getPath())
            .setSourceIp(Request.getRemoteAddr(request));
    for (HttpField field : request.getHeaders()) {
      if (isOurs(field) || field.is("Content-Type") || field.is("Content-Encoding")) {
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

  private static boolean isOurs(HttpField field) {
    return field.getName().toLowerCase(Locale.ROOT).startsWith("x-usagepanda-");
  }

  // --- the way upstream --------------------------------------------------------------------------

  @Override
  protected HttpURI rewriteHttpURI(Request request) {
    return HttpURI.from(upstream);
  }

  /** In the spelling that was judged, and otherwise as it came. */
  @Override
  protected org.eclipse.jetty.client.Request newProxyToServerRequest(Request request, HttpURI uri) {
    String judged = (String) request.getAttribute(JUDGED_PATH);
    String path = judged.isEmpty() ? request.getHttpURI().getPath() : judged;
    String query = request.getHttpURI().getQuery();
    String base = upstream.getRawPath().replaceFirst("/$", "");
    return getHttpClient()
        .newRequest(upstream)
        .path(base + path + (query == null ? "" : "?" + query))
        .method(request.getMethod());
  }

  @Override
  protected void copyRequestHeaders(Request request, org.eclipse.jetty.client.Request outgoing) {
    super.copyRequestHeaders(request, outgoing);
    for (HttpField field : request.getHeaders()) {
      if (isOurs(field)) {
        outgoing.headers(headers -> headers.remove(field.getName()));
      }
    }
    // A client's Connection header cannot take away what the verdict rests on.
    for (HttpHeader name : List.of(HttpHeader.CONTENT_TYPE, HttpHeader.CONTENT_ENCODING)) {
      outgoing.headers(headers -> headers.remove(name));
      for (HttpField field : request.getHeaders().getFields(name)) {
        outgoing.headers(headers -> headers.add(field));
      }
    }
  }

  @Override
  protected void addProxyHeaders(Request request, org.eclipse.jetty.client.Request outgoing) {
    // Nothing: the request goes upstream as it came.
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
      refuse(response, callback, 502, "server_error", "The upstream API cannot be reached. Try again");
    }
  }

  // --- answers -----------------------------------------------------------------------------------

  /** Answers with policyd's denial, byte for byte. */
  private static void deny(Response response, Callback callback, Denial denial) {
    for (Header header : denial.getHeadersList()) {
      response.getHeaders().add(header.getName(), header.getValue());
    }
    send(response, callback, denial.getHttpStatus(), denial.getBody().asReadOnlyByteBuffer());
  }

  /** Answers with an error of the gateway's own, in the shape of OpenAI's. */
  private static void refuse(
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
    send(response, callback, status, StandardCharsets.UTF_8.encode(body));
  }

  private static void send(Response response, Callback callback, int status, ByteBuffer body) {
    response.setStatus(status);
    response.getHeaders().add(HttpHeader.DATE, DateGenerator.formatDate(System.currentTimeMillis()));
    response.write(true, body, callback);
  }

  /** A request whose body is read from elsewhere, as its beginning has been read already. */
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
