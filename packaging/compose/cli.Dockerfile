# A CLI server. The binary itself is started, not the loader that npm puts in PATH: that one leaves the server behind when
# it is told to stop.
FROM node:22-bookworm-slim
RUN npm install --global @github/copilot \
    && ln -s "$(npm root --global)/@github/copilot/node_modules/@github/copilot-linux-$(node -p process.arch)/copilot" /usr/local/bin/copilot-server \
    && mkdir /state && chown node:node /state
USER node
EXPOSE 4321
CMD ["copilot-server", "--headless", "--host", "0.0.0.0", "--port", "4321", "--no-auto-update"]
