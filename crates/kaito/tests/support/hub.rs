//! A hub on this machine that has one model under every name.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use axum::{
    Json, Router,
    extract::{Path as UrlPath, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;
use tokio::runtime::Runtime;

pub struct OneModelHub {
    pub url: String,
    served: Arc<Served>,
    _runtime: Runtime,
}

struct Served {
    directory: PathBuf,
    asked: Mutex<Vec<String>>,
}

impl OneModelHub {
    pub fn start(directory: &Path) -> Self {
        let served = Arc::new(Served { directory: directory.to_owned(), asked: Mutex::default() });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let router = Router::new()
            .route("/api/models/{org}/{name}/revision/{revision}", get(info))
            .route("/{org}/{name}/resolve/{commit}/{file}", get(file))
            .with_state(Arc::clone(&served));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, served, _runtime: runtime }
    }

    /// The repositories that were asked for, in order.
    pub fn asked(&self) -> Vec<String> {
        self.served.asked.lock().unwrap().clone()
    }
}

async fn info(
    State(served): State<Arc<Served>>,
    UrlPath((org, name, _)): UrlPath<(String, String, String)>,
) -> Json<serde_json::Value> {
    served.asked.lock().unwrap().push(format!("{org}/{name}"));
    let files = fs::read_dir(&served.directory).unwrap();
    let siblings: Vec<_> =
        files.map(|file| json!({"rfilename": file.unwrap().file_name().to_str().unwrap()})).collect();
    Json(json!({"sha": "0123456789abcdef0123456789abcdef01234567", "siblings": siblings}))
}

async fn file(
    State(served): State<Arc<Served>>,
    UrlPath((_, _, _, file)): UrlPath<(String, String, String, String)>,
) -> Response {
    match fs::read(served.directory.join(&file)) {
        Ok(bytes) => ([(header::ETAG, format!("\"{file}\""))], bytes).into_response(),
        Err(_) => StatusCode::NOT_FOUND.into_response(),
    }
}
