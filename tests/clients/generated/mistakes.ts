// Each line must be a type error.
import createClient from "openapi-fetch";
import type { paths } from "./schema.js";

const client = createClient<paths>();
client.POST("PREFIX/v1/embeddings", { body: { input: "a" } });
client.POST("PREFIX/v1/embeddings", { body: { model: "m", input: 5 } });
client.POST("PREFIX/v1/embeddings", { body: { model: "m", input: "a", encoding_format: "hex" } });
client.POST("PREFIX/v1/embeddings", { body: { model: "m", input: ["a", 1] } });
