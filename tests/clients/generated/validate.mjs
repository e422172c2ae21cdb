// Prints, as JSON, which of the values in a file fit the request schema of an OpenAPI document.
import { readFileSync } from "node:fs";
import Ajv2020 from "ajv/dist/2020.js";

const [, , documentFile, valuesFile, path] = process.argv;
const document = JSON.parse(readFileSync(documentFile, "utf8"));
const values = JSON.parse(readFileSync(valuesFile, "utf8"));
const ajv = new Ajv2020({ strict: true, strictTypes: true });
ajv.addVocabulary(["components"]);
const compile = (schema) => ajv.compile({ ...schema, components: document.components });

// Compile every schema of the document, which fails for keywords and patterns that ajv rejects.
function compileAll(value) {
  if (value === null || typeof value !== "object") return;
  for (const [name, item] of Object.entries(value)) {
    if (name === "schema") compile(item);
    else compileAll(item);
  }
}
compileAll(document.paths);
const body = document.paths[path].post.requestBody.content["application/json"].schema;
const validate = compile(body);
console.log(JSON.stringify(values.map((value) => validate(value))));
