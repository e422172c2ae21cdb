import java.io.FileInputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.util.regex.Pattern;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

/** Sends requests with the JDK's client in its default configuration, which offers HTTP/2. Arguments: URL, key, certificate. */
public class Embed {
    public static void main(String[] arguments) throws Exception {
        HttpClient.Builder builder = HttpClient.newBuilder();
        if (arguments.length > 2) {
            builder.sslContext(trusting(arguments[2]));
        }
        HttpClient client = builder.build();
        for (int length : new int[] {1, 500, 100_000, 1}) {
            String text = "a".repeat(length);
            String body = "{\"model\":\"m\",\"input\":[\"" + text + "\",\"b\",\"c\"]}";
            HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0] + "/v1/embeddings"))
                .header("Authorization", "Bearer " + arguments[1])
                .header("Content-Type", "application/json")
                .POST(HttpRequest.BodyPublishers.ofString(body))
                .build();
            HttpResponse<String> response = client.send(request, HttpResponse.BodyHandlers.ofString());
            long vectors = Pattern.compile("\"embedding\":\\[").matcher(response.body()).results().count();
            System.out.println(response.statusCode() + " " + vectors + " " + response.version());
        }
    }

    private static SSLContext trusting(String certificate) throws Exception {
        KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null, null);
        try (FileInputStream file = new FileInputStream(certificate)) {
            store.setCertificateEntry("server", CertificateFactory.getInstance("X.509").generateCertificate(file));
        }
        TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(store);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, trust.getTrustManagers(), null);
        return context;
    }
}
