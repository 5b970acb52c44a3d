//! The description of the API, from the handlers' declarations.

use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;

use crate::problem::{self, Problem};
use crate::state::AppState;
use crate::{
    architectures, audit, auth, checkpoints, datasets, extractors, generations, generators, health, idempotency, jobs,
    lineage, manners, metrics, models, page, tokens, zoos,
};

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Weightsmith",
        description = "Neural-network weights for a dataset, on request.\n\nErrors are `application/problem+json` \
                       (RFC 9457) with a stable `code`. Lists are pages: pass `next_cursor` as `cursor` to go on. Every \
                       answer carries `x-request-id`, which may be given with the request.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    servers((url = "/", description = "This server.")),
    tags(
        (name = "generations", description = "Requests for weights, and the weights that were made."),
        (name = "generators", description = "Trained generators: versions are immutable, aliases move."),
        (name = "datasets", description = "Labelled data, and descriptions of tasks."),
        (name = "extractors", description = "ONNX image encoders whose features may take the place of pixels."),
        (name = "zoos", description = "Populations of trained models."),
        (name = "checkpoints", description = "Weights of trained models."),
        (name = "architectures", description = "Networks that weights are generated for."),
        (name = "models", description = "Language models of the server's folder, and searches for better layers."),
        (name = "jobs", description = "Long work: watched, cancelled, resumed."),
        (name = "lineage", description = "What was made from what."),
        (name = "tokens", description = "Who may do what, and how much."),
        (name = "audit", description = "Who did what."),
        (name = "health", description = "Liveness and readiness."),
    ),
    components(schemas(Problem)),
    modifiers(&Scheme)
)]
struct Document;

/// Adds the security scheme that operations refer to.
struct Scheme;

impl utoipa::Modify for Scheme {
    fn modify(&self, document: &mut OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some(
                "A token from `weightsmith token create` or `POST /v1/tokens`. Its scopes are read, generate, train \
                 and administer; administer includes the others.",
            ))
            .build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme(auth::SCHEME, SecurityScheme::Http(scheme));
    }
}

/// All routes with their descriptions.
pub(crate) fn described() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(Document::openapi())
        .merge(generations::routes())
        .merge(generators::routes())
        .merge(datasets::routes())
        .merge(extractors::routes())
        .merge(zoos::routes())
        .merge(checkpoints::routes())
        .merge(architectures::routes())
        .merge(models::routes())
        .merge(jobs::routes())
        .merge(lineage::routes())
        .merge(tokens::routes())
        .merge(audit::routes())
        .merge(health::routes())
        .merge(metrics::routes())
}

/// The OpenAPI 3.1 document.
#[must_use]
pub fn openapi() -> OpenApi {
    let mut document = described().into_openapi();
    page::describe_selection(&mut document);
    idempotency::describe(&mut document);
    manners::describe(&mut document);
    add_access_problems(&mut document);
    document
}

/// Every operation that needs a token may answer that it did not get the right one.
fn add_access_problems(document: &mut OpenApi) {
    let open = [SecurityRequirement::default()];
    for operation in document.paths.paths.values_mut().flat_map(operations) {
        if operation.security.as_deref().is_some_and(|security| security != open) {
            for (status, problem) in problem::access() {
                operation.responses.responses.entry(status).or_insert(problem);
            }
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let PathItem { get, put, post, delete, options, head, patch, trace, .. } = item;
    [get, put, post, delete, options, head, patch, trace].into_iter().flatten()
}

/// The OpenAPI document as it is served and kept in `openapi/openapi.json`: pretty, in a stable order, with a newline
/// at its end.
#[must_use]
pub fn openapi_json() -> String {
    // Maps of strings always become JSON; an empty document would fail the comparison with the kept one.
    let mut text = openapi().to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}
