//! HTTP by hand, for what no client sends, and where nothing more than a status and a body is wanted.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs},
};

use crate::wait::LIMIT;

/// What came on a connection until the server closed it.
#[derive(Debug, Clone)]
pub struct Answer {
    /// All of it.
    pub text: String,
    /// Whether the connection was reset rather than closed.
    pub reset: bool,
}

impl Answer {
    /// The status of the first answer; 0 if there is none.
    pub fn status(&self) -> u16 {
        self.text.get(9..12).and_then(|digits| digits.parse().ok()).unwrap_or(0)
    }

    /// What follows the first head.
    pub fn body(&self) -> &str {
        self.text.split_once("\r\n\r\n").map_or("", |(_, body)| body)
    }
}

/// A connection on which nothing waits for ever.
pub fn connect(address: impl ToSocketAddrs) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// Everything until the server closes.
pub fn read_all(stream: &mut TcpStream) -> Answer {
    let (mut bytes, mut piece) = (Vec::new(), [0; 16 << 10]);
    let reset = loop {
        match stream.read(&mut piece) {
            Ok(0) => break false,
            Ok(read) => bytes.extend_from_slice(&piece[..read]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break true,
            Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&bytes)),
        }
    };
    Answer { text: String::from_utf8_lossy(&bytes).into_owned(), reset }
}

/// Sends `request`, all of it before the first byte of the answer is read, as simple clients do, and leaves the connection
/// open until the server closes it.
pub fn ask(address: impl ToSocketAddrs, request: &[u8]) -> io::Result<Answer> {
    let mut stream = connect(address)?;
    stream.write_all(request)?;
    Ok(read_all(&mut stream))
}

/// [`ask`], off the threads of the test's runtime.
pub async fn ask_and_wait(address: SocketAddr, request: impl Into<Vec<u8>>) -> Answer {
    let request = request.into();
    blocking(move || ask(address, &request).expect("the server takes the whole request")).await
}

/// [`ask_and_wait`] by a client that says that it sends nothing more. Servers close connections that are asked for nothing
/// more.
pub async fn ask_once(address: SocketAddr, request: impl Into<Vec<u8>>) -> Answer {
    let request = request.into();
    blocking(move || {
        let mut stream = connect(address).expect("a connection");
        stream.write_all(&request).expect("the server takes the whole request");
        stream.shutdown(Shutdown::Write).ok();
        read_all(&mut stream)
    })
    .await
}

/// A `POST` of JSON with the lines of a head in `more`.
pub fn post(path: &str, more: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{more}\r\n");
    [head.as_bytes(), body].concat()
}

/// Runs something that blocks.
pub async fn blocking<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(run).await.unwrap()
}

/// Asks a server one thing at a time, on a connection for each.
#[derive(Debug, Clone)]
pub struct Client {
    /// Host and port.
    pub address: String,
}

impl Client {
    /// The status and the body of a `GET`.
    ///
    /// # Errors
    /// A server that does not listen, or hangs up.
    pub fn try_get(&self, path: &str) -> io::Result<(u16, String)> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let answer = ask(self.address.as_str(), request.as_bytes())?;
        match answer.status() {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            status => Ok((status, answer.body().to_owned())),
        }
    }

    /// The status and the body of a `GET` that is answered.
    pub fn get(&self, path: &str) -> (u16, String) {
        self.try_get(path).unwrap()
    }

    /// The status and the body of a `POST` of JSON that is answered.
    pub fn post(&self, path: &str, body: &str) -> (u16, String) {
        let lines = format!("Connection: close\r\nContent-Length: {}\r\n", body.len());
        let answer = ask(self.address.as_str(), &post(path, &lines, body.as_bytes())).unwrap();
        assert!(answer.status() > 0, "{path}: the server hung up");
        (answer.status(), answer.body().to_owned())
    }
}
