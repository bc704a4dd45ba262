//! Which web origins' pages may call the API (CORS).

use axum::http::{HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::record::REQUEST_ID;
use crate::trace::TRACEPARENT;

/// What a page may read of an answer beside the headers that every page may.
const EXPOSED: [HeaderName; 3] = [REQUEST_ID, header::RETRY_AFTER, TRACEPARENT];

/// Answers browsers that ask for `origins`; `None` where there are none. Any header may come with a request, since the SDKs
/// send many of their own.
pub(crate) fn layer(origins: &[HeaderValue]) -> Option<CorsLayer> {
    let origin = match origins {
        [] => return None,
        list if list.contains(&HeaderValue::from_static("*")) => AllowOrigin::any(),
        list => AllowOrigin::list(list.iter().cloned()),
    };
    Some(
        CorsLayer::new()
            .allow_origin(origin)
            .allow_methods([Method::GET, Method::POST])
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(EXPOSED),
    )
}
