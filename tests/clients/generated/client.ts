// A client of the embeddings endpoint, typed by the schema that openapi-typescript generates.
import createClient from "openapi-fetch";
import type { paths } from "./schema.js";

declare const process: { argv: string[] };

const client = createClient<paths>({
  baseUrl: process.argv[2],
  headers: { authorization: `Bearer ${process.argv[3]}` },
});
const { data, error } = await client.POST("PREFIX/v1/embeddings", {
  body: { model: "hash", input: ["one", "two"], dimensions: 4, provider: { allow_fallbacks: false } },
});
if (error) throw new Error(JSON.stringify(error));
const vectors: (number[] | string)[] = data.data.map((row) => row.embedding);
const tokens: number = data.usage.total_tokens;
const models = await client.GET("PREFIX/v1/models");
console.log(JSON.stringify({ vectors, tokens, first: models.data?.data[0]?.id }));
