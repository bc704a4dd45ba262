//! Uploads, and what registries do with them.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
};

use axum::{
    extract::Request,
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use tokio::sync::Mutex as AsyncMutex;

use super::{Broken, Config, LastChunk, Located, Registry, Told, Upload, digest, drain, error};

impl Registry {
    /// Headers that say where an upload is and how far.
    fn upload_headers(&self, id: u64, upload: &Upload, opened: bool) -> HeaderMap {
        let config = self.config();
        let mut headers = HeaderMap::new();
        // Parameters hold state that must come back as it is.
        let state = format!("{id}?_state=a%2Fb%3D{}&x=", upload.data.len());
        let path = format!("/v2/{}/blobs/uploads/{state}", upload.repository);
        let location = match config.located {
            Located::Relative => Some(state),
            Located::ByUuid => None,
            Located::Once if !opened => None,
            Located::Path | Located::WholeAddress | Located::Once => Some(self.location(&path)),
        };
        if let Some(location) = location {
            headers.insert(header::LOCATION, location.parse().unwrap());
        }
        headers.insert("docker-upload-uuid", id.to_string().parse().unwrap());
        let last = upload.data.len().saturating_sub(1);
        let range = match config.tells {
            Told::All => format!("0-{last}"),
            Told::WithUnit => format!("bytes=0-{last}"),
            Told::FirstChunk => format!("0-{}", upload.first_end.saturating_sub(1)),
            Told::Zero => "0-0".to_owned(),
            Told::Nothing => return headers,
        };
        headers.insert(header::RANGE, range.parse().unwrap());
        headers
    }
}

pub(super) async fn upload(
    registry: &Registry,
    repository: &str,
    id: &str,
    query: &HashMap<String, String>,
    request: Request,
) -> Response {
    let config = registry.config();
    if *request.method() == Method::POST {
        if let Some(status) = config.mount_refusal.filter(|_| query.contains_key("mount")) {
            if status == 401 {
                return registry.challenge();
            }
            return error(status, "DENIED", "not from there");
        }
        if let Some((status, code, message)) = config.upload_refusal {
            return error(status, code, message);
        }
        if let (Some(mount), Some(from)) = (query.get("mount"), query.get("from"))
            && let Some(bytes) = registry.blob(from, mount)
        {
            registry.put_blob(repository, &bytes);
            return (StatusCode::CREATED, [("docker-content-digest", mount.clone())]).into_response();
        }
        let id = registry.next.fetch_add(1, Ordering::Relaxed);
        let upload = Upload { repository: repository.to_owned(), ..Upload::default() };
        let headers = registry.upload_headers(id, &upload, true);
        registry.uploads.lock().unwrap().insert(id, Arc::new(AsyncMutex::new(upload)));
        let least = config.min_chunk.to_string();
        return (StatusCode::ACCEPTED, headers, [("oci-chunk-min-length", least)]).into_response();
    }
    let id: u64 = id.parse().unwrap();
    let unknown = || error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry");
    let Some(upload) = registry.uploads.lock().unwrap().get(&id).cloned() else { return unknown() };
    let mut upload = upload.lock().await;
    if upload.repository != repository || upload.given_up || upload.finished.is_some() {
        return unknown();
    }
    let method = request.method().clone();
    match method {
        Method::GET => match config.status_refused {
            Some(status) => StatusCode::from_u16(status).unwrap().into_response(),
            None => (StatusCode::NO_CONTENT, registry.upload_headers(id, &upload, false)).into_response(),
        },
        Method::DELETE => {
            upload.given_up = true;
            StatusCode::NO_CONTENT.into_response()
        }
        Method::PATCH if !config.takes_chunks => {
            drain(request).await;
            error(405, "UNSUPPORTED", "no chunks here")
        }
        Method::PATCH | Method::PUT => {
            // What was given with the last answer must come back.
            let state = format!("a/b={}", upload.data.len());
            let told = config.tells == Told::All && matches!(config.located, Located::Path | Located::WholeAddress);
            let came_back = query.get("_state") == Some(&state) && query.get("x").map(String::as_str) == Some("");
            let stale = told && !came_back;
            let put = method == Method::PUT;
            if let Err(response) = take(&config, &mut upload, request, put, stale).await {
                return response;
            }
            if !put {
                let status = StatusCode::from_u16(config.chunk_status).unwrap();
                return (status, registry.upload_headers(id, &upload, false)).into_response();
            }
            let Some(wanted) = query.get("digest") else { return error(400, "DIGEST_INVALID", "no digest") };
            let found = digest(&upload.data);
            if *wanted != found && config.last_chunk != LastChunk::StoredWithout {
                upload.given_up = true;
                return error(400, "DIGEST_INVALID", &found);
            }
            let data = std::mem::take(&mut upload.data);
            registry.put_blob(repository, &data);
            upload.finished = Some(found.clone());
            *registry.commits.lock().unwrap().entry((repository.to_owned(), found.clone())).or_default() += 1;
            let location = registry.location(&format!("/v2/{repository}/blobs/{found}"));
            let status = StatusCode::from_u16(config.end_status).unwrap();
            let mut response = (status, [(header::LOCATION, location)]).into_response();
            if config.tells_digests {
                response.headers_mut().insert("docker-content-digest", found.parse().unwrap());
            }
            response
        }
        _ => error(405, "UNSUPPORTED", "unsupported"),
    }
}

/// Why the content of a request is not taken into an upload, if it is not.
fn refusal(config: &Config, upload: &Upload, headers: &HeaderMap, put: bool, stale: bool) -> Option<Response> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let length: u64 = text(header::CONTENT_LENGTH).and_then(|length| length.parse().ok()).unwrap();
    let out_of_step = || error(416, "BLOB_UPLOAD_INVALID", "the chunk does not begin where the data ends");
    if let Some(range) = text(header::CONTENT_RANGE) {
        let (start, end) = range.split_once('-').unwrap();
        let (start, end): (u64, u64) = (start.parse().unwrap(), end.parse().unwrap());
        assert_eq!(end + 1 - start, length, "Content-Range and Content-Length");
        if start != upload.data.len() as u64 {
            return Some(out_of_step());
        }
    } else if length > 0 && !upload.data.is_empty() {
        return Some(out_of_step());
    }
    if stale {
        return Some(out_of_step());
    }
    if !put && upload.chunks >= config.most_chunks {
        return Some(error(416, "RANGE_INVALID", "no more chunks"));
    }
    if put && length > 0 && !upload.data.is_empty() && config.last_chunk == LastChunk::Refused {
        return Some(error(400, "UNSUPPORTED", "the upload is to be ended without content"));
    }
    if !put && config.min_chunk as u64 > length {
        return Some(error(400, "SIZE_INVALID", &format!("chunks have {} bytes at least", config.min_chunk)));
    }
    None
}

/// Takes the content of a request into an upload.
async fn take(config: &Config, upload: &mut Upload, request: Request, put: bool, stale: bool) -> Result<(), Response> {
    if let Some(refusal) = refusal(config, upload, request.headers(), put, stale) {
        drain(request).await;
        return Err(refusal);
    }
    let before = upload.data.len();
    let passed_over = put
        && match config.last_chunk {
            LastChunk::PassedOver | LastChunk::StoredWithout => upload.chunks > 0,
            LastChunk::AlwaysPassedOver => true,
            LastChunk::Taken | LastChunk::Refused => false,
        };
    let mut stream = request.into_body().into_data_stream();
    while let Some(piece) = stream.next().await {
        match piece {
            Ok(piece) => {
                if !passed_over {
                    upload.received += piece.len() as u64;
                    upload.data.extend_from_slice(&piece);
                }
            }
            Err(_) => {
                match config.broken {
                    Broken::Kept => {}
                    Broken::Dropped => upload.data.truncate(before),
                    Broken::GivenUp => upload.given_up = true,
                }
                return Err(error(400, "SIZE_INVALID", "the request broke"));
            }
        }
    }
    if !put {
        upload.data.truncate(before.saturating_add(config.keeps_of_chunk));
        upload.chunks += 1;
        if upload.chunks == 1 {
            upload.first_end = upload.data.len();
        }
    }
    Ok(())
}
