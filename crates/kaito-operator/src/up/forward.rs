//! The service: a local port whose connections are forwarded to the pod.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time,
};

/// Connections beyond this number wait in the listener's queue.
const MAX_CONNECTIONS: usize = 1024;

/// Forwards connections until it is dropped. A connection that the pod refuses is closed.
pub async fn forward(listener: TcpListener, target: SocketAddr) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((client, _)) => {
                tokio::spawn(async move {
                    // Either side may hang up at any time.
                    let _ = relay(client, target).await;
                    drop(permit);
                });
            }
            Err(error) => {
                // Most likely no file descriptor is free; wait until some connection ends.
                tracing::warn!(%error, "cannot take a connection");
                time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn relay(mut client: TcpStream, target: SocketAddr) -> io::Result<()> {
    let mut pod = TcpStream::connect(target).await?;
    // Streamed tokens are small and must not wait for each other.
    client.set_nodelay(true)?;
    pod.set_nodelay(true)?;
    io::copy_bidirectional(&mut client, &mut pod).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[tokio::test]
    async fn bytes_go_both_ways_on_many_connections_and_an_end_is_passed_on() {
        let (pod, pod_address) = listener().await;
        let (service, service_address) = listener().await;
        tokio::spawn(forward(service, pod_address));
        tokio::spawn(async move {
            loop {
                let (mut connection, _) = pod.accept().await.unwrap();
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    // Ends only when the client has closed its half.
                    connection.read_to_end(&mut request).await.unwrap();
                    request.reverse();
                    connection.write_all(&request).await.unwrap();
                });
            }
        });
        let exchanges = (0..32_u8).map(|i| async move {
            let mut connection = TcpStream::connect(service_address).await.unwrap();
            let sent: Vec<u8> = (0..100_000).map(|byte: u32| (byte % 251) as u8 ^ i).collect();
            let (mut read, mut write) = connection.split();
            let mut answer = Vec::new();
            let write = async {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
            };
            tokio::join!(write, async { read.read_to_end(&mut answer).await.unwrap() });
            answer.reverse();
            assert_eq!(answer, sent);
        });
        futures_util::future::join_all(exchanges).await;
    }

    #[tokio::test]
    async fn a_pod_that_does_not_listen_closes_the_connection() {
        let (pod, pod_address) = listener().await;
        drop(pod);
        let (service, service_address) = listener().await;
        tokio::spawn(forward(service, pod_address));
        for _ in 0..3 {
            let mut connection = TcpStream::connect(service_address).await.unwrap();
            assert!(matches!(connection.read(&mut [0; 1]).await, Ok(0) | Err(_)));
        }
    }
}
