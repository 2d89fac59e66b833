//! One work channel: the WebSocket to the master, as two tasks that carry messages and know nothing of them.

use bytes::Bytes;
use client::Token;
use futures_util::{SinkExt, StreamExt, stream::SplitSink, stream::SplitStream};
use protocol::{frame::MAX_MESSAGE_BYTES, work::SUBPROTOCOL};
use rustls::{ClientConfig, pki_types::ServerName};
use session::close::CloseReason;
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::mpsc::{Sender, UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinHandle,
};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        Error as WebSocketError, Message,
        client::IntoClientRequest,
        http::{HeaderValue, Uri, header},
        protocol::{CloseFrame, WebSocketConfig},
    },
};

/// To connect, TLS and the upgrade included.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// What was sent, and the close itself, must be written within this.
pub(crate) const CLOSE_WITHIN: Duration = Duration::from_secs(1);
/// Small, because a node at rest holds it; messages may be longer.
const BUFFER_BYTES: usize = 16 * 1024;

/// What was written is told in portions of at least this many bytes: they are held against a window that is
/// far larger.
const TELL_BYTES: usize = 8 * 1024;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}
type Socket = WebSocketStream<Box<dyn Stream>>;

/// Why a channel could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// 401, 404 or 410.
    #[error("the master does not know this node any more (status {0})")]
    Unknown(u16),
    /// Anything else.
    #[error("cannot open the work channel: {0}")]
    Other(String),
}

/// Something that happened on a channel.
#[derive(Debug)]
pub(crate) enum Happened {
    /// A message came.
    Message(Bytes),
    /// A ping or pong came.
    Heard,
    /// So many bytes of messages were written since the last time.
    Written(usize),
    /// It is over, for this reason.
    Closed(String),
}

enum Order {
    Send(Bytes),
    Close(CloseReason),
}

/// An open channel. Dropping it cuts the connection.
#[derive(Debug)]
pub(crate) struct Channel {
    orders: UnboundedSender<Order>,
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
    /// This end's address.
    pub(crate) local_ip: IpAddr,
    /// The master's end.
    pub(crate) peer: SocketAddr,
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.reader.abort();
        self.writer.abort();
    }
}

impl Channel {
    /// Opens the channel. What happens on it is told to `events` as `(number, what)`.
    pub(crate) async fn open<E: Send + 'static>(
        url: &str,
        session: &Token,
        tls: Arc<ClientConfig>,
        events: Sender<E>,
        event: impl Fn(Happened) -> E + Clone + Send + 'static,
    ) -> Result<Self, OpenError> {
        let open = connect(url, session, tls);
        let (socket, local_ip, peer) = tokio::time::timeout(CONNECT_WITHIN, open)
            .await
            .map_err(|_| OpenError::Other(format!("no answer within {} s", CONNECT_WITHIN.as_secs())))??;
        let (sink, stream) = socket.split();
        // Bounded by the session, which keeps back results past its window.
        let (orders, waiting) = unbounded_channel();
        let reader = tokio::spawn(read(stream, events.clone(), event.clone()));
        let writer = tokio::spawn(write(sink, waiting, events, event));
        Ok(Self { orders, reader, writer, local_ip, peer })
    }

    /// Sends a message; one that cannot be sent any more is told as [`Happened::Closed`].
    pub(crate) fn send(&self, message: Bytes) {
        let _ = self.orders.send(Order::Send(message));
    }

    /// Closes it after what was sent is written.
    pub(crate) fn close(&self, reason: CloseReason) {
        let _ = self.orders.send(Order::Close(reason));
    }

    /// Waits for what was sent to be written, a second at most.
    pub(crate) async fn finish(mut self) {
        let (orders, _) = unbounded_channel();
        drop(std::mem::replace(&mut self.orders, orders));
        let _ = tokio::time::timeout(CLOSE_WITHIN, &mut self.writer).await;
    }
}

async fn connect(
    url: &str,
    session: &Token,
    tls: Arc<ClientConfig>,
) -> Result<(Socket, IpAddr, SocketAddr), OpenError> {
    let other = |error: &dyn std::fmt::Display| OpenError::Other(error.to_string());
    let mut request = url.into_client_request().map_err(|error| other(&error))?;
    let bearer = HeaderValue::try_from(format!("Bearer {}", session.expose()))
        .map_err(|_| OpenError::Other("the session token is no header value".to_owned()))?;
    request.headers_mut().insert(header::AUTHORIZATION, bearer);
    request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    let uri = request.uri().clone();
    let (host, secure) = (host_of(&uri), uri.scheme_str() == Some("wss"));
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let tcp = TcpStream::connect((host, port)).await.map_err(|error| other(&error))?;
    // Messages are gathered already, so waiting for more only delays them.
    tcp.set_nodelay(true).map_err(|error| other(&error))?;
    let local_ip = tcp.local_addr().map_err(|error| other(&error))?.ip();
    let peer = tcp.peer_addr().map_err(|error| other(&error))?;
    let stream: Box<dyn Stream> =
        if secure { Box::new(secured(tcp, host, tls).await?) } else { Box::new(tcp) };
    let bounds = WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES));
    match client_async_with_config(request, stream, Some(bounds)).await {
        Ok((socket, _)) => Ok((socket, local_ip, peer)),
        Err(WebSocketError::Http(response)) => match response.status().as_u16() {
            status @ (401 | 404 | 410) => Err(OpenError::Unknown(status)),
            status => Err(OpenError::Other(format!("the master answers with status {status}"))),
        },
        Err(error) => Err(other(&error)),
    }
}

/// The host of a URL, an IPv6 address without its brackets.
fn host_of(uri: &Uri) -> &str {
    uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']')
}

/// TLS as the client speaks it.
async fn secured(
    tcp: TcpStream,
    host: &str,
    tls: Arc<ClientConfig>,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, OpenError> {
    let name =
        ServerName::try_from(host.to_owned()).map_err(|error| OpenError::Other(format!("TLS: {error}")))?;
    let connected = tokio_rustls::TlsConnector::from(tls).connect(name, tcp).await;
    connected.map_err(|error| {
        OpenError::Other(client::tls::explain(&error).unwrap_or_else(|| format!("TLS: {error}")))
    })
}

/// Reads until the channel ends. Waits while the agent is busy, so that messages wait at the master.
async fn read<E>(mut from: SplitStream<Socket>, to: Sender<E>, event: impl Fn(Happened) -> E) {
    loop {
        let happened = match from.next().await {
            Some(Ok(Message::Binary(message))) => Happened::Message(message),
            // The answer to a ping goes out with the next read.
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => Happened::Heard,
            Some(Ok(Message::Close(frame))) => {
                let why = frame.map(|frame| format!("{}: {}", u16::from(frame.code), frame.reason));
                Happened::Closed(why.unwrap_or_else(|| "closed by the master".to_owned()))
            }
            Some(Ok(Message::Text(_) | Message::Frame(_))) => continue,
            Some(Err(error)) => Happened::Closed(error.to_string()),
            None => Happened::Closed("the connection ended".to_owned()),
        };
        let over = matches!(happened, Happened::Closed(_));
        if to.send(event(happened)).await.is_err() || over {
            return;
        }
    }
}

/// Writes until told to close, or until nothing more can come.
async fn write<E>(
    mut to: SplitSink<Socket, Message>,
    mut orders: UnboundedReceiver<Order>,
    events: Sender<E>,
    event: impl Fn(Happened) -> E,
) {
    let mut untold = 0;
    while let Some(order) = orders.recv().await {
        let happened = match order {
            Order::Send(message) => {
                untold += message.len();
                match to.send(Message::Binary(message)).await {
                    Ok(()) if untold < TELL_BYTES => continue,
                    Ok(()) => Happened::Written(std::mem::take(&mut untold)),
                    Err(error) => Happened::Closed(error.to_string()),
                }
            }
            Order::Close(reason) => {
                let why = reason.to_string();
                let frame = CloseFrame { code: reason.code().into(), reason: reason.text().into() };
                let close = to.send(Message::Close(Some(frame)));
                let _ = tokio::time::timeout(CLOSE_WITHIN, close).await;
                Happened::Closed(why)
            }
        };
        let over = matches!(happened, Happened::Closed(_));
        // `try_send` first: on the way out nobody may be listening any more.
        if events.send(event(happened)).await.is_err() || over {
            return;
        }
    }
}
